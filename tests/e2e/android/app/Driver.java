import android.content.res.AssetManager;
import android.graphics.Bitmap;
import com.example.digits.Accelerator;
import com.example.digits.Category;
import com.example.digits.DigitsModel;
import com.example.digits.SelfTestReport;
import com.example.digits.Tensor;
import java.io.File;
import java.io.FileInputStream;
import java.util.List;
import java.util.Locale;

/** What an app does, one line of output for each thing: the test reads them. */
public final class Driver {
    public static void main(String[] arguments) throws Exception {
        AssetManager assets = new AssetManager(arguments[0]);
        DigitsModel model = DigitsModel.loadVerified(assets);
        System.out.println("accelerator " + model.accelerator());
        SelfTestReport report = model.selfTest();
        for (SelfTestReport.Case c : report.cases) {
            System.out.println(String.format(Locale.ROOT, "case %s %s %.17g %s", c.name, c.passed(), c.error, c.message));
        }
        if (arguments.length > 1) {
            byte[] rgb = new byte[(int) new File(arguments[1]).length()];
            new FileInputStream(arguments[1]).read(rgb);
            int width = Integer.parseInt(arguments[2]);
            int height = Integer.parseInt(arguments[3]);
            List<Category> found = model.classify(new Bitmap(rgb, width, height), 10);
            for (Category category : found) {
                System.out.println(String.format(Locale.ROOT, "score %d %.9g %s", category.index, category.score, category.label));
            }
        }
        refused("short image", model, new byte[5]);
        try {
            model.run(Tensor.of(new float[6], 1, 6));
            System.out.println("accepted wrong shape");
        } catch (IllegalArgumentException e) {
            System.out.println("refused wrong shape");
        }
        try {
            Tensor.of(new float[6], 1, 7);
            System.out.println("accepted wrong size");
        } catch (IllegalArgumentException e) {
            System.out.println("refused wrong size");
        }
        model.close();
        System.exit(0);
    }

    private static void refused(String what, DigitsModel model, byte[] rgb) {
        try {
            model.classify(rgb, 2, 2, 1);
            System.out.println("accepted " + what);
        } catch (IllegalArgumentException e) {
            System.out.println("refused " + what);
        }
    }
}
