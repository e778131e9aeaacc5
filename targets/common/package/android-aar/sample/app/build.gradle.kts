plugins {
    id("com.android.application")
}

android {
    namespace = "@ID@.sample"
    compileSdk = 35

    defaultConfig {
        applicationId = "@ID@.sample"
        minSdk = @MIN_SDK@
        targetSdk = 35
        versionCode = 1
        versionName = "@VERSION@"
    }

    // The model is mapped from the APK; compressed it is read into memory instead.
    androidResources {
        noCompress += listOf("tflite", "onnx", "ort")
    }
}

dependencies {
    implementation("@GROUP@:@ARTIFACT@:@VERSION@")
}
